"""Searches for the deployment that serves a workload with the least energy."""
