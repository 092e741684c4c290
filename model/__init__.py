"""The network and the renderer; imports only geometry."""
