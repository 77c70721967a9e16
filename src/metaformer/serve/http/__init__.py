"""Limits, security and schemas of requests and answers."""
