"""What goes out: coded concepts, the Structured Report, the presentation state, the rendered picture."""
