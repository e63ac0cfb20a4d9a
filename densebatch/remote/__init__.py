"""Slides in object storage and on web servers: addresses, and how they are read."""
