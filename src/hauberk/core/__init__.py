"""The core: what every area builds on: target, threat, data, findings, statistics, training."""
