"""The two ids of label maps that are no class."""

IGNORE = 255  # a pixel of this id takes part in no loss and no metric
INVALID = 254  # in a record's look-up table: an id that must not occur in the map's file
