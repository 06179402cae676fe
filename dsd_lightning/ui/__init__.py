"""A page in the browser: reference image and prompt in, images, guidance sheets and comics out. See `page.py`."""
