"""What operators of services see: telemetry, and the log and the metrics of a server."""
