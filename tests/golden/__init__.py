"""Printed programs, kept as files."""
