"""What takes more than one call: following a job, waiting for its end, finding what a lost reply was about."""
