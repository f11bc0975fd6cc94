"""Trust: can the answers be relied upon? Calibration, selective prediction, drift and fairness."""
