"""What comes from outside: models, endpoints, data and plans. Every file is treated as hostile."""
