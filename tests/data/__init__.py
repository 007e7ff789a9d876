"""Tests of checking, mending, splitting and converting training data."""
