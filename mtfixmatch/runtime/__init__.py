"""What keeps a run alive: it knows neither tasks nor methods."""
