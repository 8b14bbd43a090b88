"""Committed measurements that anyone can rerun."""
