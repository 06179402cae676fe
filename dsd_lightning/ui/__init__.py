"""Serves a page in the browser that generates images, guidance sheets and comics. See `page.py`."""
