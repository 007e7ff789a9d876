"""Tests of `aiofinetune.testing`."""
