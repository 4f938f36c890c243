"""What people look at: steps in the terminal and in HTML, and plots."""
