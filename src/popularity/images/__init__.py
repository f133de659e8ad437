"""Images of a data set: location, header and decoded content."""

from popularity.images.findings import image_lines
from popularity.images.folder import ImageFolder, find_shards
from popularity.images.indexing import IndexImagesParams, index_files, index_images
from popularity.images.reading import ImageDecodeError, ImageReader, decode_image, decode_reduced
from popularity.images.shards import packed_images

__all__ = [
    "ImageDecodeError",
    "ImageFolder",
    "ImageReader",
    "IndexImagesParams",
    "decode_image",
    "decode_reduced",
    "find_shards",
    "image_lines",
    "index_files",
    "index_images",
    "packed_images",
]
