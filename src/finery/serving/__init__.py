"""What runs inside a serving process.  Imports nothing of the server; `host.py` is the way in."""
