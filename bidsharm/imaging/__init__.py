"""Pure functions on arrays and affines: grids, masks, bias field, segmentation, templates."""
