"""Side by side with public libraries: `geolib bench`."""
