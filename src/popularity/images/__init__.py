"""Pictures of a data set: where each one lies, what its header says, and its decoded content."""

from popularity.images.indexing import IndexImagesParams, index_files, index_images, picture_sizes
from popularity.images.reading import ImageDecodeError, PictureReader, decode_picture

__all__ = [
    "ImageDecodeError",
    "IndexImagesParams",
    "PictureReader",
    "decode_picture",
    "index_files",
    "index_images",
    "picture_sizes",
]
