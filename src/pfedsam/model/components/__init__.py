"""The components of the personal model, one file each; `pfedsam.model.build` makes them from the options."""
