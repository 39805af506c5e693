"""The slave that is a GlusterFS volume: the same agent, on gfids that the volume itself keeps."""
