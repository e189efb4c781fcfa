"""Classes that come task after task."""
