"""Data: a site's cases from its folder to model input (manifest, split by patient, images, transforms, loader)."""
