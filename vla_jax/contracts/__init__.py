"""The doors between the rooms: typed contracts that everything else passes around."""
