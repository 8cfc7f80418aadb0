"""Reading runs, comparing them over seeds, and showing the result: tables, pictures, one HTML page."""
