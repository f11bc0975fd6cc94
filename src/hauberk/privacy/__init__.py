"""Privacy: what a model, its answers and its gradients give away about the people in the data."""
