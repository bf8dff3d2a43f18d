"""The parts of the personal model, one file each; `pfedsam.model.build` makes them of the options."""
