"""Single calls over HTTP: send, retry, throttle, upload and download."""
