"""What shows how runs do."""
