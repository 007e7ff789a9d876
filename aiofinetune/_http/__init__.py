"""One call over HTTP: sending, retrying, throttling, uploading, downloading."""
