"""A page in the browser: reference picture and prompt in, pictures, guidance sheets and comics out. See `page.py`."""
