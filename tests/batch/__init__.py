"""Batches: from the command line and the manifest to the journal that a run goes on with."""
