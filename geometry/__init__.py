"""Transforms, cameras, voxel grids and warps, in numpy and torch; imports no other room of the project."""
