"""Class ids in label maps that are no class."""

IGNORE_LABEL = 255  # the pixel takes no part, in every map of this package, whatever files use
INVALID_LABEL = 254  # in a record's table of classes: a raw id that must not occur
