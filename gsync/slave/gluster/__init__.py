"""A GlusterFS volume as the slave: the same agent, on the gfids that the volume itself keeps."""
