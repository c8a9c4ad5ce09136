"""Images: the one room that opens files of images and decodes them."""
