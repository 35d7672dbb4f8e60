"""Image files, tars of images, and the captions and boxes that come with them."""
