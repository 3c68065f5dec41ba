"""What operators do: views and commands that the faces share."""
