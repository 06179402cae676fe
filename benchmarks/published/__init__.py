"""The public code of published metrics beside ours, on the same random weights, images and replies."""
