"""Commands as processes of their own: started quickly, and shown in a terminal."""
