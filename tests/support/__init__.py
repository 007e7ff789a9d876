"""What tests share besides servers: a clock that jumps, made-up values, random schedules, damaged journals."""
