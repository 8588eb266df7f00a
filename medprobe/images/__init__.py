"""Bytes on disk to RGB arrays."""
