"""Programs that look for failures for as long as they are let, run by hand."""
