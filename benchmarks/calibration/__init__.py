"""False alarms, drift and extension of a detector."""
