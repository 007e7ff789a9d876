"""Tasks that take several calls: follow a job, wait for its end, and recover a create or upload after a lost reply."""
