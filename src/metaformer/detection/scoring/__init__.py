"""From an anomaly map to a score, a threshold, regions and a prediction."""
