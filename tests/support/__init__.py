"""What tests share besides servers: checks, a clock that jumps, made-up values, random schedules, damaged journals."""
