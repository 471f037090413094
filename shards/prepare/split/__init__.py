"""Long videos to scenes."""
