"""Images of a data set: location, header and decoded content."""

from popularity.images.indexing import IndexImagesParams, image_sizes, index_files, index_images
from popularity.images.reading import ImageDecodeError, ImageReader, decode_image

__all__ = [
    "ImageDecodeError",
    "ImageReader",
    "IndexImagesParams",
    "decode_image",
    "image_sizes",
    "index_files",
    "index_images",
]
